"""The training driver's parts: data, views, model, methods, metrics, step, engine, records, report, pictures."""

"""The training driver's parts: data, views, model, methods, metrics, engine, report, pictures."""

"""The training driver's parts: data, views, model, methods, metrics, steps, records, reports."""

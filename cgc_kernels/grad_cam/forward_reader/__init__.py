"""Reading what a model does with a layer's output, without running it."""

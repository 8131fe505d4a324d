"""Random calls of the library: valid ones against the float64 reference, invalid ones for an error of ours."""

"""What search.py is made of, from the bottom up: sizes, maps, networks, views, terms, training, measures, tables."""

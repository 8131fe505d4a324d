"""What photographs.py is made of: the files that are fetched, and the page that comes of them."""

"""How fast training over trees is, against TRL in the same run: `make bench`."""

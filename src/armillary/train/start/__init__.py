"""How ranks come to be: started here or met where a launcher put them, again, or as others."""

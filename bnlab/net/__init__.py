"""A net and its sites: built, adopted from a module of the user, watched, evaluated."""

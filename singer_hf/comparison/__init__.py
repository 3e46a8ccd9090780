"""One teacher, one student, many methods and seeds."""

"""One teacher, one student, many methods and seeds: what each method is worth, with intervals."""

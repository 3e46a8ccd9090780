"""Clean-up methods: refiners of the tokens after a block, and changes of the teacher that take its outliers away."""

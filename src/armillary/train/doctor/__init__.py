"""What is here: a machine alone (`here`), or the ranks of an allocation and what joins them."""

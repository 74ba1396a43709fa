"""The command line: `main` has the verbs, every other file a group of them."""

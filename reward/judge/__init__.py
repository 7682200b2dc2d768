"""A language model as judge: what it is asked, how its text is read, what a group of responses scores."""

"""The viewer: a page of slides and scans with the scores of every method, served locally or exported as a folder."""

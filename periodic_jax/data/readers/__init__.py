"""One reader for each format of a data set's files."""

"""One run on an accelerator that answers, in minutes, how right and how fast a sweep is there; see `__main__`."""

"""Building corpora and fitting the model on the user's own machine."""

"""Building corpora and training the model on the user's own machine."""

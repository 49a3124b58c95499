"""Pure functions and scikit-learn-style estimators on arrays: nothing in this room knows a model, an image or a file."""

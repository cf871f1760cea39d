"""Pages of the service: the page to try a model, the description of the API, sample images."""

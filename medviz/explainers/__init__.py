"""The built-in explainers: one method, one file. They are found through their entry points, as anybody else's."""

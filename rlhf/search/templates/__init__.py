"""The page's template: a package, so that it is installed with it."""

"""The page's templates, style and scripts: a package, so that they are installed with it."""

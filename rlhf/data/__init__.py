"""From files, folders and Hugging Face names to records, with every dropped row counted. No torch here.

    readers: read_rows -> Row -> (helpsteer, helpsteer3, nectar, columns) -> Rating, Preference, Prompt,
    Comparison + DropReport

One rule decides what happens to a row that cannot be used. A *malformed* row (not JSON, a column missing or
of the wrong type, a rating or a strength out of range) is a mistake in the file: `DataError`, with its place.
A row that is well formed and *of no use by rule* (a tie, annotators who disagree, an empty response: see
`rules`) is dropped, and counted with its reason and place in the `DropReport`.
"""

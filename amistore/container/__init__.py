"""The container: format version 1 as pure functions between bytes and objects.

Sans-IO: nothing here opens a file or socket, starts a thread or reads a clock. Imports the model only. Where
to look: `layout.py` declares every byte and limit, `records.py` turns records into objects, `frames.py` makes
and decodes frames, `members.py` the tar members, `plan.py` says what stands where, `encoder.py` writes,
`decoder.py` reads from front to end, `index.py` is the way in from the end, `segments.py` proves blocks.
`docs/format.md` is the normative text.
"""

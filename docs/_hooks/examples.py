"""An extension of griffe: the section ``Example:`` of a docstring is read as its ``Examples:``, which hold doctests."""

import griffe


class Examples(griffe.Extension):
    """Renames the section before the docstring is parsed."""

    def on_object(self, *, obj: griffe.Object, **_: object) -> None:
        """Called for each object that griffe has read."""
        if obj.docstring:
            obj.docstring.value = obj.docstring.value.replace("\nExample:\n", "\nExamples:\n")

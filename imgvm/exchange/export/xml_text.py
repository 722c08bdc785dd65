# SPDX-License-Identifier: MIT
"""Elements as the text of an XML 1.0 document."""

from __future__ import annotations

import re
import xml.etree.ElementTree as Xml

from imgvm.exchange.export.parts import Parts

# XML 1.0, section 2.2: the other control characters cannot even be said by reference.
_NO_CHARACTER = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def text_of(root: Xml.Element, parts: Parts) -> str:
    """The document, indented. What XML cannot say is noted."""
    for element in root.iter():
        attributes = {key: _sayable(value) for key, value in element.attrib.items()}
        said = None if element.text is None else _sayable(element.text)
        if (attributes, said) != (element.attrib, element.text):
            parts.note("control characters of its texts are not taken along: XML has none")
            element.attrib, element.text = attributes, said
    Xml.indent(root)
    return Xml.tostring(root, "unicode") + "\n"


def _sayable(text: str) -> str:
    return _NO_CHARACTER.sub("\ufffd", text)

"""A page as a parser sees it: elements with their attributes, and the text in each."""

from dataclasses import dataclass
from html.parser import HTMLParser

VOID = ("meta", "link", "input")


@dataclass(eq=False)
class Element:
    tag: str
    attributes: dict[str, str | None]
    inside: tuple["Element", ...] = ()  # from the document down
    text: str = ""

    def __getitem__(self, name: str) -> str | None:
        return self.attributes.get(name)


class Parsed(HTMLParser):
    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[Element] = []
        self.open: list[Element] = []
        self.feed(html)
        self.close()
        assert not self.open, "an element was never closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(self.elements[-1])

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(attrs) == len(dict(attrs)), f"{tag} has an attribute twice"
        self.elements.append(Element(tag, dict(attrs), tuple(self.open)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop().tag == tag, f"</{tag}> closes another element"

    def handle_data(self, data: str) -> None:
        for element in self.open:
            element.text += data

    def of(self, *tags: str) -> list[Element]:
        return [element for element in self.elements if element.tag in tags]

    def having(self, attribute: str) -> list[Element]:
        return [element for element in self.elements if attribute in element.attributes]

    @property
    def shape(self) -> list[tuple[str, tuple[str, ...]]]:
        """All but what names and numbers can change."""
        return [(element.tag, tuple(element.attributes)) for element in self.elements]

    def cells(self, table: int = 0) -> list[dict[str, Element]]:
        """The body of a table, by the titles of its columns."""
        whole = self.of("table")[table]
        lines = [
            [cell for cell in self.of("td", "th") if row in cell.inside] for row in self.of("tr") if whole in row.inside
        ]
        heads = [head.text for head in lines[0]]
        return [dict(zip(heads, line, strict=True)) for line in lines[1:]]

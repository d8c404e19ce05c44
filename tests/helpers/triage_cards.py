"""The cards of a triage page, read back."""

from html.parser import HTMLParser


class Cards(HTMLParser):
    """``cards``: of each card its attributes, its "text" with single spaces, and the "alt" of its picture."""

    def __init__(self, path):
        super().__init__()
        self.cards, self.inside = [], False
        self.feed(path.read_text(encoding="utf-8"))
        for card in self.cards:
            card["text"] = " ".join(card["text"].split())

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        if tag == "li" and "data-score" in attributes:
            self.cards.append(attributes | {"text": "", "alt": None})
            self.inside = True
        if tag == "img":
            self.cards[-1]["alt"] = attributes["alt"]
        if tag == "h2":
            self.inside = False

    def handle_data(self, text):
        if self.inside:
            self.cards[-1]["text"] += text

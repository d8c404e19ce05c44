"""A page read back, for the tests of what pages hold."""

from html.parser import HTMLParser


class Page(HTMLParser):
    """Checks that tags are closed in order, and gathers tags, attributes, words and table rows."""

    def __init__(self, text):
        super().__init__()
        self.open, self.rows, self.words, self.attributes, self.tags = [], [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attributes]
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.attributes += [(tag, *pair) for pair in attributes]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, text):
        self.words.append(text)
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += text

"""Interpolated modified Kneser-Ney from the formulas, with dictionaries: slow, to compare with."""

import math
from collections import Counter, defaultdict

BORDER = "border"


class KneserNeyByHand:
    """p(word | history) from documents: lists of ids without their end of text. A history may begin with BORDER."""

    def __init__(self, documents, order, vocab_size, eos_id, fallback=(0.5, 1.0, 1.5)):
        self.vocab_size, self.order = vocab_size, order
        occurs = [Counter() for _ in range(order + 1)]
        for document in documents:
            words = [BORDER, *document, eos_id]
            for size in range(1, order + 1):
                occurs[size].update(tuple(words[i : i + size]) for i in range(len(words) - size + 1))
        del occurs[1][(BORDER,)]
        self.counts = [{}] * order + [occurs[order]]
        for size in range(1, order):
            before = defaultdict(set)
            for ngram in occurs[size + 1]:
                before[ngram[1:]].add(ngram[0])
            self.counts[size] = {g: n if g[0] == BORDER else len(before[g]) for g, n in occurs[size].items()}
        self.discounts = [self._discounts(Counter(counts.values()), fallback) for counts in self.counts]

    @staticmethod
    def _discounts(n, fallback):
        found = [0.0, *fallback]
        for i in (1, 2, 3):
            if n[1] and n[i] and n[i + 1]:
                discount = i - (i + 1) * n[1] / (n[1] + 2 * n[2]) * n[i + 1] / n[i]
                found[i] = discount if discount > 0 else found[i]
        return found

    def prob(self, word, history):
        size = len(history) + 1
        followers = {g[-1]: count for g, count in self.counts[size].items() if g[:-1] == tuple(history)}
        lower = self.prob(word, history[1:]) if history else 1 / self.vocab_size
        if not followers:
            return lower
        discount = {follower: self.discounts[size][min(count, 3)] for follower, count in followers.items()}
        own = followers[word] - discount[word] if word in followers else 0.0
        return (own + sum(discount.values()) * lower) / sum(followers.values())

    def log_prob(self, word, ids, eos_id):
        """After all ids of a stream, of which those from the last end of text on are seen."""
        last = max(place for place, token in enumerate(ids) if token == eos_id)
        history = [BORDER, *ids[last + 1 :]]
        return math.log(self.prob(word, history[max(0, len(history) - self.order + 1) :]))

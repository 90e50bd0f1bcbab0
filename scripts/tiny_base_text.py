"""The text that the tiny base learns from, made up here.

Every document says something and then says part of it again: a quotation, a note and a question about it, a date
written two ways. To predict it, a model has to copy names that it has never met. There is no JSON, no chat turn
and no business message in it.
"""

import random
from collections.abc import Callable

import quickstart_words as words

COLOURS = words.listed("red,blue,green,white,black,yellow,brown,grey,purple,orange")
ANIMALS = words.listed("dog,cat,horse,goat,parrot,rabbit,donkey,tortoise,goose,pony")
TRADES = words.listed("baker,tailor,nurse,sailor,teacher,farmer,painter,judge,singer,gardener,pilot,miller")
THINGS = (
    words.listed(
        "bread,apples,rope,candles,salt,nails,soap,honey,flour,string,lamp oil,wool,onions,chalk,paper,matches,pears,"
        "tea,coffee,cheese,boots,a map,a saw,a drum,a ladder,a kettle"
    )
    + words.ITEMS
)
DEEDS = words.listed(
    "bought a boat,won a prize,lost the keys,painted the fence,sang all night,missed the train,found a coin,"
    "wrote a book,fixed the roof,met the judge,planted a tree,sold the house,crossed the lake,slept late"
)


def _word(rng: random.Random) -> str:
    """Something short to copy: a name, a reference, a sum, a thing."""
    makers: list[Callable[[], str]] = [
        lambda: words.person(rng),
        lambda: words.first_name(rng),
        lambda: words.company(rng),
        lambda: words.street(rng),
        lambda: words.reference(rng),
        lambda: words.amount(rng)[1],
        lambda: words.date(rng)[1],
        lambda: words.clock(rng)[1],
        lambda: rng.choice(THINGS),
        lambda: str(rng.randint(2, 999)),
    ]
    return rng.choice(makers)()


def quotation(rng: random.Random) -> str:
    who, what = words.first_name(rng), " ".join(_word(rng) for _ in range(rng.randint(1, 4)))
    verb, again = rng.choice(("wrote", "said", "read", "called")), rng.choice(("again", "once more", "a second time"))
    return f'{who} {verb} "{what}" and then {again}: "{what}". So {who} {verb} "{what}".'


def sign(rng: random.Random) -> str:
    """The same words, first bare, then between quotation marks."""
    what = rng.choice((*THINGS, *words.SERVICES, *words.PROBLEMS, *DEEDS, *TRADES))
    if rng.random() < 0.3:
        what = f"{rng.choice(COLOURS)} {rng.choice(THINGS)}"
    who = words.first_name(rng)
    bare = rng.choice((f"{who} spoke of {what}.", f"{who} read {what} on a sign.", f"A sign by {who} says {what}."))
    quoted = rng.choice((f'The words were "{what}".', f'On the sign: "{what}".', f'"{what}" it was.'))
    return f"{bare} {quoted} {notes(rng)}" if rng.random() < 0.3 else f"{bare} {quoted}"


def notes(rng: random.Random) -> str:
    """Keys and values, then some of them asked for, in any order."""
    makers: dict[str, Callable[[], str]] = {
        "name": lambda: words.person(rng),
        "owner": lambda: words.person(rng),
        "town": lambda: words.last_name(rng),
        "street": lambda: words.street(rng),
        "shop": lambda: words.company(rng),
        "ticket": lambda: words.reference(rng),
        "key": lambda: words.reference(rng),
        "price": lambda: words.amount(rng)[1],
        "born": lambda: words.date(rng)[1],
        "opens": lambda: words.clock(rng)[1],
        "colour": lambda: rng.choice(COLOURS),
        "trade": lambda: rng.choice(TRADES),
        "age": lambda: str(rng.randint(2, 99)),
        "goods": lambda: rng.choice(THINGS),
    }
    keys = rng.sample(list(makers), rng.randint(3, 5))
    note = {key: makers[key]() for key in keys}
    asked = rng.sample(keys, rng.randint(2, len(keys)))
    shown = "; ".join(f"{key}: {value}" for key, value in note.items())
    return f"{shown}. " + " ".join(f"{key}? {note[key]}." for key in asked)


def story(rng: random.Random) -> str:
    """A few facts about one person, then questions and their answers."""
    who = words.person(rng)
    home, friend, reference = words.street(rng), words.person(rng), words.reference(rng)
    firm, thing, trade = words.company(rng), rng.choice(THINGS), rng.choice(TRADES)
    (day, iso), (time, clock), (money, figure, code) = words.date(rng), words.clock(rng), words.amount(rng)
    count, deed, colour = rng.randint(2, 400), rng.choice(DEEDS), rng.choice(COLOURS)
    pet, pet_name = rng.choice(ANIMALS), words.first_name(rng)
    facts = [
        (rng.choice((f"The house stands at {home}.", f"Home is {home}.")), f"Where is home? {home}"),
        (rng.choice((f"A good friend is {friend}.", f"{friend} is a friend.")), f"Which friend? {friend}"),
        (rng.choice((f"The ticket says {reference}.", f"{reference} is on the ticket.")), f"Which ticket? {reference}"),
        (rng.choice((f"The work is at {firm}.", f"{firm} pays the wages.")), f"Which firm? {firm}"),
        (rng.choice((f"In the cellar lie {count} {thing}.", f"{count} {thing} were found.")), f"How many? {count}"),
        (rng.choice((f"The loft is full of {thing}.", f"There was {thing} on the cart.")), f"What was there? {thing}"),
        (rng.choice((f"It was on {day}.", f"On {day} it rained.", f"Born {day}.")), f"Which day? {iso}"),
        (rng.choice((f"The bell rings at {time}.", f"Lunch is at {time}.")), f"At what time? {clock}"),
        (rng.choice((f"The hat cost {money}.", f"{money} went on the hat.")), f"How much? {figure} {code}"),
        (rng.choice((f"Last year {who} {deed}.", f"One day {who} {deed}.")), f"What happened? {who} {deed}"),
        (rng.choice((f"The {pet} is called {pet_name}.", f"{pet_name} the {pet} is old.")), f"Which {pet}? {pet_name}"),
        (f"{money} went on the coat.", f"Which coin? {code}"),
        (f"The door is {colour}.", f"Which colour? {colour}"),
    ]
    chosen = rng.sample(facts, rng.randint(2, 4))
    opening = rng.choice((f"{who} is a {trade}.", f"This is about {who}, a {trade}.", f"{who}, the {trade}, is here."))
    asked = [question for _, question in chosen] + [f"Who? {who}", f"Which trade? {trade}"]
    rng.shuffle(asked)
    return " ".join([opening, *(fact for fact, _ in chosen), *(f"{q}." for q in asked[: rng.randint(2, 5)])])


def listing(rng: random.Random) -> str:
    things = [_word(rng) for _ in range(rng.randint(2, 5))]
    backwards = ", ".join(reversed(things)) if rng.random() < 0.3 else ", ".join(things)
    return f"The list: {', '.join(things)}. " + (
        f"Read backwards: {backwards}." if rng.random() < 0.2 else f"Once more: {', '.join(things)}."
    )


def spelled(rng: random.Random) -> str:
    """Dates, times and sums written two ways."""
    pairs = []
    for _ in range(rng.randint(2, 5)):
        pick = rng.random()
        if pick < 0.4:
            pairs.append(words.date(rng))
        elif pick < 0.6:
            pairs.append(words.clock(rng))
        else:
            written, figure, code = words.amount(rng)
            pairs.append((written, f"{figure} {code}"))
    return " ".join(f"{written} is {short}." for written, short in pairs)


def document(rng: random.Random) -> str:
    kinds = (quotation, sign, sign, sign, notes, notes, story, story, story, story, listing, spelled, spelled)
    return rng.choice(kinds)(rng)


def documents(seed: int, count: int) -> list[str]:
    rng = random.Random(seed)
    return [document(rng) for _ in range(count)]

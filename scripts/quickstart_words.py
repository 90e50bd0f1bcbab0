"""Words, names, dates and amounts of the quickstart's messages.

Names and references are composed from syllables and drawn into two pools by a hash of the word itself, so that
a name of the held-out pool can appear neither in a training row nor in the base's text, whatever the seed.
"""

import random
import zlib
from collections.abc import Callable


def listed(text: str) -> list[str]:
    """The entries of a list written as one text with commas."""
    return text.split(",")


ONSETS = listed("b,br,c,ch,d,dr,f,fl,g,gr,h,j,k,kl,l,m,n,p,pr,r,s,sh,st,t,tr,v,w,z")
VOWELS = listed("a,e,i,o,u,ai,ea,oo")
MIDDLES = listed("l,m,n,r,s,t,v,d,b,lm,nd,rt,st,ll,nn,rr")
FIRST_ENDINGS = listed("a,an,e,el,en,i,ia,ie,in,is,o,on,us,y")
LAST_ENDINGS = listed("ack,ard,ell,er,ers,ett,ick,ides,ing,ino,ley,man,mond,ner,ock,ov,ow,sen,ski,son,ton,well")
COMPANY_ENDINGS = ["Ltd", "Group", "Brothers", "Trading", "Supplies", "Works"]
STREET_ENDINGS = ["Street", "Road", "Lane", "Avenue"]

ITEMS = listed(
    "steel brackets,office chairs,desk lamps,paper rolls,garden hoses,oak shelves,water filters,copper pipes,"
    "printer cartridges,coffee cups,safety gloves,wool blankets,glass jars,door handles,bicycle tyres,floor tiles,"
    "paint brushes,storage boxes,window blinds,kitchen knives,cable drums,wall clocks,picture frames,hand towels,"
    "folding tables,tea kettles,rubber mats,wooden crates,light bulbs,spare batteries"
)
SERVICES = listed(
    "haircut,dental check,eye test,car inspection,boiler service,piano lesson,tax review,massage,site visit,"
    "bike repair,vaccination,house viewing,roof survey,phone repair,tailor fitting"
)
PROBLEMS = listed(
    "arrived damaged,never arrived,was the wrong colour,came two weeks late,was missing parts,was already opened,"
    "is too small,is badly scratched,does not fit,smells of paint,broke on the first day,is not what we asked for"
)
MONTHS = listed("January,February,March,April,May,June,July,August,September,October,November,December")
CURRENCIES = {"EUR": ("EUR {}", "{} euros"), "USD": ("USD {}", "{} dollars"), "GBP": ("GBP {}", "{} pounds")}

HELD_OUT_SHARE = 8  # one word in so many belongs to the held-out pool


def is_held_out(word: str) -> bool:
    """Whether a composed name or reference belongs to the held-out pool."""
    return zlib.crc32(word.encode()) % HELD_OUT_SHARE == 0


def draw(compose: Callable[[], str], held_out: bool) -> str:
    """Compose words until one falls into the wanted pool."""
    while True:
        word = compose()
        if is_held_out(word) == held_out:
            return word


def _stem(rng: random.Random, middles: int) -> str:
    word = rng.choice(ONSETS) + rng.choice(VOWELS)
    for _ in range(middles - 1):
        word += rng.choice(MIDDLES) + rng.choice(VOWELS[:5])
    return (word + rng.choice(MIDDLES)).capitalize()


def first_name(rng: random.Random, held_out: bool = False) -> str:
    return draw(lambda: _stem(rng, 1) + rng.choice(FIRST_ENDINGS), held_out)


def last_name(rng: random.Random, held_out: bool = False) -> str:
    return draw(lambda: _stem(rng, rng.choice((1, 1, 2))) + rng.choice(LAST_ENDINGS), held_out)


def person(rng: random.Random, held_out: bool = False) -> str:
    return f"{first_name(rng, held_out)} {last_name(rng, held_out)}"


def company(rng: random.Random, held_out: bool = False) -> str:
    return f"{last_name(rng, held_out)} {rng.choice(COMPANY_ENDINGS)}"


def street(rng: random.Random, held_out: bool = False) -> str:
    return f"{rng.randint(1, 99)} {last_name(rng, held_out)} {rng.choice(STREET_ENDINGS)}"


def reference(rng: random.Random, held_out: bool = False) -> str:
    """An order, invoice or parcel number such as ``KD-40718``."""
    letters = "ABCDEFGHJKLMNPRSTUVWXYZ"
    return draw(
        lambda: f"{rng.choice(letters)}{rng.choice(letters)}-{rng.randrange(10 ** rng.randint(3, 5)):03d}", held_out
    )


def date(rng: random.Random) -> tuple[str, str]:
    """A day as a message writes it, and as a record holds it (ISO 8601)."""
    year, month, day = rng.randint(2025, 2027), rng.randint(1, 12), rng.randint(1, 28)
    name = MONTHS[month - 1]
    written = rng.choice((f"{day} {name} {year}", f"{name} {day}, {year}", f"{day:02d}.{month:02d}.{year}"))
    return written, f"{year}-{month:02d}-{day:02d}"


def clock(rng: random.Random) -> tuple[str, str]:
    """A time as a message writes it, and on the 24-hour clock."""
    hour, minute = rng.randint(8, 18), rng.choice((0, 0, 15, 30, 45))
    exact = f"{hour:02d}:{minute:02d}"
    if minute == 0 and hour != 12 and rng.random() < 0.5:
        return f"{hour} am" if hour < 12 else f"{hour - 12} pm", exact
    return exact, exact


def amount(rng: random.Random) -> tuple[str, str, str]:
    """A sum as a message writes it, its figure with two decimals, and its currency code."""
    cents = rng.randrange(500, 10 ** rng.randint(4, 6))
    figure = f"{cents // 100}.{cents % 100:02d}"
    shown = f"{cents // 100:,}.{cents % 100:02d}" if rng.random() < 0.5 else figure
    code = rng.choice(list(CURRENCIES))
    return rng.choice(CURRENCIES[code]).format(shown), figure, code

"""Extraction and format tasks: sentences or lists of records to be turned into JSON or a table with given keys."""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from policy_training.workloads import vocabulary as words

Value = str | int | float


@dataclass(frozen=True, slots=True)
class Schema:
    """A kind of record: what one is called, how to draw each field, sentences that state all fields."""

    noun: str
    fields: dict[str, Callable[[Random], Value]]
    sentences: tuple[str, ...]


def draw(rng: Random) -> str:
    """One to six records as text, the format wanted and its keys."""
    schema = rng.choice(_SCHEMAS)
    records = [_record(schema, rng) for _ in range(rng.choice((1, 1, 2, 3, 4, 5, 6)))]
    keys = rng.sample(list(schema.fields), rng.randint(min(3, len(schema.fields)), len(schema.fields)))
    request = rng.choice(_SINGLE if len(records) == 1 else _MANY).format(noun=schema.noun, keys=_listed(keys, rng))
    text = _source(schema, records, rng)
    return rng.choice((f"{request}\n\n{text}", f"{text}\n\n{request}", f"{request}\n\nText: {text}\n\nOutput:"))


def _record(schema: Schema, rng: Random) -> dict[str, Value]:
    return {name: field(rng) for name, field in schema.fields.items()}


def _listed(keys: list[str], rng: Random) -> str:
    return ", ".join(keys) if rng.random() < 0.5 else ", ".join(f'"{key}"' for key in keys)


def _source(schema: Schema, records: list[dict[str, Value]], rng: Random) -> str:
    """The records as running text, as a list of sentences, or as lines of labelled values."""
    layout = rng.choice(("text", "list", "labels"))
    if layout == "labels":
        return "\n".join("; ".join(f"{name.replace('_', ' ')}: {r[name]}" for name in r) for r in records)
    sentences = [rng.choice(schema.sentences).format(**record) for record in records]
    return " ".join(sentences) if layout == "text" else "\n".join(f"- {s}" for s in sentences)


def _one_of(values: tuple[str, ...]) -> Callable[[Random], str]:
    return lambda rng: rng.choice(values)


def _whole(low: int, high: int, step: int = 1) -> Callable[[Random], int]:
    return lambda rng: rng.randrange(low, high + 1, step)


def _money(high: int) -> Callable[[Random], str]:
    return lambda rng: f"{rng.randint(1, high)}.{rng.choice((0, 25, 49, 50, 75, 95, 99)):02}"


def _code(letters: str) -> Callable[[Random], str]:
    return lambda rng: f"{letters}-{rng.randint(1000, 9999)}"


def _address(rng: Random) -> str:
    return words.email(words.person(rng), rng)


_SINGLE = (
    "Extract the {noun} from the text as a JSON object with the keys {keys}.",
    "Turn this into JSON. Use exactly these keys: {keys}. Answer with the JSON only.",
    "Return one JSON object for this {noun} with the fields {keys}, with null for what is not stated.",
    "Write the {noun} as YAML with the keys {keys}.",
    "Make a Markdown table with the columns Field and Value and the rows {keys}.",
)
_MANY = (
    "Extract every {noun} as a JSON array of objects with the keys {keys}.",
    "Convert the text to JSON. Each {noun} is an object with exactly these keys: {keys}. Answer with the JSON only.",
    "Write one JSON object per line, one for each {noun}, with the keys {keys}.",
    "Make a Markdown table with one row for each {noun} and the columns {keys}.",
    "Convert this to CSV with a header line. The columns are {keys}.",
    "Write the list as YAML, one item for each {noun}, with the keys {keys}.",
    "Return a JSON object that maps the number of each {noun} (1, 2, ...) to an object with the keys {keys}.",
)
_ROADS = ("Mill Road", "Station Street", "Park Lane", "High Street", "River Walk", "Garden Avenue", "Church Square")
_TOPICS = ("data ethics", "solar power", "urban farming", "robot safety", "open source", "deep sea life", "rare books")
_ILLNESSES = ("a cough", "back pain", "a sprained ankle", "a headache", "a rash", "a fever", "an ear infection")
_SCHEMAS = (
    Schema(
        "person",
        {"name": words.person, "age": _whole(19, 79), "job": _one_of(words.JOBS), "city": _one_of(words.CITIES)},
        (
            "{name} is {age} years old, lives in {city} and works as a {job}.",
            "In {city} we met {name}, a {age}-year-old {job}.",
            "{name} ({age}) moved to {city} to become a {job}.",
        ),
    ),
    Schema(
        "order",
        {
            **{"order_id": _code("ORD"), "customer": words.person, "quantity": _whole(1, 60)},
            **{"product": _one_of(words.GOODS), "total": _money(900), "date": words.iso_date},
        },
        (
            "On {date} {customer} ordered {quantity} {product} for ${total} (order {order_id}).",
            "Order {order_id}, placed by {customer} on {date}: {quantity} {product}, ${total} in all.",
        ),
    ),
    Schema(
        "event",
        {
            **{"title": lambda rng: f"{rng.choice(_TOPICS).title()} {rng.choice(('Day', 'Forum', 'Meetup'))}"},
            **{"date": words.date, "time": words.clock, "city": _one_of(words.CITIES), "seats": _whole(20, 800, 10)},
        },
        (
            "The {title} takes place in {city} on {date} at {time}; there are {seats} seats.",
            "Join us in {city} for the {title}, {date}, doors open at {time}, limited to {seats} guests.",
        ),
    ),
    Schema(
        "flight",
        {
            **{"flight": _code("QX"), "origin": _one_of(words.CITIES), "destination": _one_of(words.CITIES)},
            **{"departure": words.clock, "gate": lambda rng: f"{rng.choice('ABCD')}{rng.randint(1, 48)}"},
        },
        (
            "Flight {flight} from {origin} to {destination} leaves at {departure} from gate {gate}.",
            "Passengers to {destination}: {flight} departs {origin} at {departure}, gate {gate}.",
        ),
    ),
    Schema(
        "contact",
        {
            **{"name": words.person, "company": _one_of(words.COMPANIES), "email": _address},
            **{"phone": lambda rng: f"555-{rng.randint(100, 999)}-{rng.randint(1000, 9999)}"},
        },
        (
            "You can reach {name} of {company} at {email} or {phone}.",
            "{name} works for {company}; write to {email} or call {phone}.",
        ),
    ),
    Schema(
        "book",
        {
            **{"author": words.person, "year": _whole(1950, 2024), "pages": _whole(90, 900), "price": _money(60)},
            **{"title": lambda rng: f"The {rng.choice(words.JOBS).title()} of {rng.choice(words.CITIES)}"},
        },
        (
            '"{title}" by {author} came out in {year}, has {pages} pages and costs ${price}.',
            'In {year} {author} published "{title}" ({pages} pages, ${price}).',
        ),
    ),
    Schema(
        "reading",
        {
            **{"sensor": _code("S"), "temperature": _whole(-20, 45), "humidity": _whole(10, 99), "time": words.clock},
            **{"place": _one_of(words.CITIES)},
        },
        (
            "At {time} sensor {sensor} in {place} measured {temperature} degrees and {humidity}% humidity.",
            "Sensor {sensor} ({place}) reported {humidity}% humidity and {temperature} degrees at {time}.",
        ),
    ),
    Schema(
        "invoice",
        {
            **{"invoice": _code("INV"), "seller": _one_of(words.COMPANIES), "amount": _money(9000)},
            **{"due": words.iso_date, "buyer": _one_of(words.COMPANIES)},
        },
        (
            "{seller} sent invoice {invoice} over ${amount} to {buyer}; it is due on {due}.",
            "{buyer} owes {seller} ${amount} by {due} under invoice {invoice}.",
        ),
    ),
    Schema(
        "visit",
        {
            **{"patient": words.person, "doctor": words.person, "date": words.date, "time": words.clock},
            **{"complaint": _one_of(_ILLNESSES)},
        },
        (
            "{patient} saw Dr {doctor} on {date} at {time} about {complaint}.",
            "Dr {doctor} treated {patient} for {complaint} on {date}, {time}.",
        ),
    ),
    Schema(
        "flat",
        {
            **{"rooms": _whole(2, 6), "area": _whole(25, 180), "rent": _whole(400, 3500, 50)},
            **{"street": _one_of(_ROADS), "city": _one_of(words.CITIES), "available": words.date},
        },
        (
            "A flat of {rooms} rooms and {area} square metres in {street}, {city}, is {rent} a month from {available}.",
            "{city}, {street}: {area} square metres, rooms: {rooms}, rent {rent}, free from {available}.",
        ),
    ),
)

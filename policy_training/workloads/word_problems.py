"""Word problems of several steps in English, with names, goods and numbers drawn so that the answers make sense."""

from random import Random

from policy_training.workloads.vocabulary import CITIES, FIRST_NAMES, GOODS, WEEKDAYS

_BEFORE = ("", "", "Solve this problem. ", "Question: ", "Here is a word problem. ", "Please help with my homework. ")
_AFTER = (
    "",
    "",
    "\nThink step by step.",
    "\nShow every step of the calculation.",
    "\nExplain your reasoning, then give the final answer on its own line.",
    "\nGive the answer as a number after a short explanation.",
    "\nLet's work it out step by step.",
)


def draw(rng: Random) -> str:
    """One problem, with or without a request to show the reasoning."""
    problem = rng.choice(_PROBLEMS)(rng)
    return rng.choice(_BEFORE) + problem + rng.choice(_AFTER)


def _names(rng: Random, count: int) -> list[str]:
    return rng.sample(FIRST_NAMES, count)


def _shopping(rng: Random) -> str:
    (who,), (a, b) = _names(rng, 1), rng.sample(GOODS, 2)
    n, m, p, q = rng.randint(2, 15), rng.randint(2, 12), rng.randint(1, 9), rng.randint(2, 12)
    return (
        f"{who} buys {n} {a} at ${p} each and {m} {b} at ${q} each, and pays with "
        f"{-(-(n * p + m * q) // 50)} bills of $50. How much change does {who} get back?"
    )


def _discount(rng: Random) -> str:
    (who,), price, off = _names(rng, 1), rng.randrange(40, 900, 5), rng.randrange(5, 60, 5)
    tax, what = rng.randint(4, 12), rng.choice(("coat", "bicycle", "phone", "camera", "desk", "tent", "guitar"))
    return (
        f"A {what} that costs ${price} is on sale at {off}% off. Sales tax of {tax}% is added to the reduced price. "
        f"How much does {who} pay for it in all?"
    )


def _travel(rng: Random) -> str:
    (who,), (a, b) = _names(rng, 1), rng.sample(CITIES, 2)
    v, w, h, k = rng.randrange(40, 110, 5), rng.randrange(30, 90, 5), rng.randint(2, 6), rng.randint(1, 5)
    return (
        f"{who} drives from {a} towards {b} at {v} km/h for {h} hours, rests for {rng.randrange(15, 75, 15)} minutes, "
        f"and drives the last {k} hours at {w} km/h. How far is the trip, and what is the average speed, rest included?"
    )


def _meeting_trains(rng: Random) -> str:
    (a, b), v, w = rng.sample(CITIES, 2), rng.randrange(60, 140, 10), rng.randrange(50, 130, 10)
    return (
        f"Two trains leave {a} and {b}, {(v + w) * rng.randint(2, 7)} km apart, at {rng.randint(6, 11)}:00 and travel "
        f"towards each other at {v} km/h and {w} km/h. At what time do they meet, and how far from {a}?"
    )


def _work_together(rng: Random) -> str:
    (x, y), job = _names(rng, 2), rng.choice(("paint a fence", "mow a field", "clean a hall", "sort the mail"))
    return (
        f"{x} can {job} in {rng.randint(2, 9)} hours and {y} can do it in {rng.randint(3, 12)} hours. They work "
        f"together for {rng.randrange(20, 70, 10)} minutes, then {x} leaves. How long does {y} need to finish?"
    )


def _fractions(rng: Random) -> str:
    (x, y), what, k = _names(rng, 2), rng.choice(GOODS), rng.randint(3, 6)
    n = k * (k - 1) * rng.randint(2, 14)
    return (
        f"{x} has {n} {what}. {x} gives 1/{k} of them to {y} and then sells 1/{k - 1} of the rest. "
        f"How many {what} does {x} still have?"
    )


def _ages(rng: Random) -> str:
    (x, y), times, child, years = _names(rng, 2), rng.randint(2, 5), rng.randint(3, 14), rng.randint(3, 15)
    return (
        f"{x} is {times} times as old as {y}. In {years} years the sum of their ages will be "
        f"{child * (times + 1) + 2 * years}. How old are {x} and {y} now, and how old were they {rng.randint(1, 2)} "
        f"years ago?"
    )


def _garden(rng: Random) -> str:
    (who,), w, h, path = _names(rng, 1), rng.randint(6, 40), rng.randint(5, 30), rng.randint(1, 3)
    return (
        f"{who} has a rectangular garden {w} m long and {h} m wide with a path {path} m wide all around it. "
        f"What is the area of the path, and what does a fence around the outside cost at ${rng.randint(4, 30)} a metre?"
    )


def _tank(rng: Random) -> str:
    length, width, depth = (rng.randrange(40, 200, 10) for _ in range(3))
    return (
        f"A tank is {length} cm long, {width} cm wide and {depth} cm deep. Water flows in at {rng.randint(5, 20)} "
        f"litres a minute and leaks out at {rng.randint(1, 4)} a minute. How long does it take to fill the empty tank?"
    )


def _triangle(rng: Random) -> str:
    (who,), (a, b) = _names(rng, 1), rng.choice(((3, 4), (5, 12), (8, 15), (7, 24)))
    k = rng.randint(1, 9)
    return (
        f"{who} walks {a * k} m north and {b * k} m east across a field, and then straight back to the start at "
        f"{rng.randint(40, 90)} m a minute. How long is the way back, and how many minutes does it take?"
    )


def _schedule(rng: Random) -> str:
    (who,), day = _names(rng, 1), rng.choice(WEEKDAYS)
    return (
        f"On {day} {who} starts work at {rng.randint(6, 10)}:{rng.randrange(0, 60, 15):02} and has {rng.randint(3, 7)} "
        f"meetings of {rng.randrange(20, 65, 5)} minutes each and "
        f"breaks of {rng.randrange(5, 30, 5)} minutes between them. At what time does the last meeting end?"
    )


def _wages(rng: Random) -> str:
    (who,), rate, hours = _names(rng, 1), rng.randint(11, 38), rng.randint(41, 60)
    return (
        f"{who} earns ${rate} an hour for the first 40 hours of a week and {rng.choice(('1.5', '1.25', '2'))} times as "
        f"much for each further hour. {who} works {hours} hours and pays {rng.randrange(10, 35, 5)}% tax. What is left?"
    )


def _mixture(rng: Random) -> str:
    low, high, litres = rng.randrange(5, 30, 5), rng.randrange(50, 90, 5), rng.randint(2, 20)
    return (
        f"How many litres of a {high}% {rng.choice(('salt', 'sugar', 'acid', 'alcohol'))} solution must be added to "
        f"{litres} litres of a {low}% solution to get a {rng.randint(low + 5, high - 10)}% solution?"
    )


def _population(rng: Random) -> str:
    city, people = rng.choice(CITIES), rng.randrange(20, 900, 5) * 1000
    return (
        f"A district of {city} has {people} inhabitants. The number grows by {rng.randint(2, 9)}% in the first year "
        f"and falls by {rng.randint(1, 6)}% in the second. How many people live there after the two years?"
    )


def _ratio(rng: Random) -> str:
    (x, y, z), (a, b, c) = _names(rng, 3), rng.sample(range(1, 9), 3)
    total = (a + b + c) * rng.randint(5, 60)
    return (
        f"{x}, {y} and {z} share ${total} in the ratio {a}:{b}:{c}. {x} then gives ${rng.randint(1, 5)} to {z}. "
        f"How much does each of them have in the end?"
    )


def _interest(rng: Random) -> str:
    (who,), sum_, years = _names(rng, 1), rng.randrange(500, 9000, 100), rng.randint(2, 5)
    return (
        f"{who} puts ${sum_} into an account that pays {rng.randint(2, 8)}% interest a year. How much more does "
        f"{who} have after {years} years with compound interest than with simple interest?"
    )


def _average(rng: Random) -> str:
    (who,), scores = _names(rng, 1), [rng.randint(55, 85) for _ in range(rng.randint(3, 6))]
    return (
        f"{who} scored {', '.join(map(str, scores[:-1]))} and {scores[-1]} in {len(scores)} tests. "
        f"What must {who} score in the next test for an average of {sum(scores) // len(scores) + rng.randint(1, 2)}?"
    )


def _digits(rng: Random) -> str:
    total, gap = rng.randint(7, 12), rng.randint(1, 5)
    return (
        f"The digits of a two-digit number add up to {total + (total + gap) % 2}. If the tens digit is {gap} more than "
        f"the ones digit, what is the number, and what is it times {rng.randint(3, 48)}?"
    )


def _recipe(rng: Random) -> str:
    (who,), people, guests = _names(rng, 1), rng.randint(2, 6), rng.randint(7, 30)
    return (
        f"A recipe for {people} people takes {rng.randrange(100, 600, 25)} g of flour, {rng.randint(1, 5)} eggs and "
        f"{rng.randrange(50, 500, 25)} ml of milk. {who} cooks for {guests} people. How much of each is needed, "
        f"and how many packs of 12 eggs must {who} buy?"
    )


def _packing(rng: Random) -> str:
    (who,), what, box, crate = _names(rng, 1), rng.choice(GOODS), rng.randint(6, 24), rng.randint(3, 10)
    return (
        f"{who} packs {rng.randint(300, 5000)} {what} into boxes of {box}, and the full boxes into crates of {crate}. "
        f"How many crates are full, how many boxes are left over, and how many {what} do not fill a box?"
    )


def _savings(rng: Random) -> str:
    (x, y), a, b = _names(rng, 2), rng.randint(5, 20), rng.randint(21, 45)
    return (
        f"{x} has ${rng.randrange(200, 600, 10)} and saves ${a} a week. {y} has ${rng.randrange(10, 190, 10)} and "
        f"saves ${b} a week. After how many weeks does {y} have more than {x} for the first time?"
    )


def _tickets(rng: Random) -> str:
    adult, child, n = rng.randint(9, 25), rng.randint(3, 8), rng.randint(40, 400)
    income = child * n + (adult - child) * rng.randint(5, n - 5)
    return (
        f"A theatre in {rng.choice(CITIES)} sells {n} tickets for ${income}. "
        f"Tickets are ${adult} for adults and ${child} for children. How many adults and how many children are there?"
    )


def _probability(rng: Random) -> str:
    what = rng.choice(("marbles", "beads", "buttons", "cards", "balls"))
    red, blue, green = (rng.randint(2, 12) for _ in range(3))
    return (
        f"A bag holds {red} red, {blue} blue and {green} green {what}. {rng.choice(FIRST_NAMES)} takes two without "
        f"looking and does not put the first one back. What is the probability that {_event(rng)}?"
    )


def _event(rng: Random) -> str:
    colour = rng.choice(("red", "blue", "green"))
    return rng.choice((f"both are {colour}", f"exactly one is {colour}", f"none is {colour}", "they differ in colour"))


def _printing(rng: Random) -> str:
    machines, hours, pages = rng.randint(2, 8), rng.randint(2, 6), rng.randrange(20, 200, 10)
    return (
        f"{machines} machines print {machines * hours * pages} pages in {hours} hours. How many pages do "
        f"{machines + rng.randint(1, 6)} such machines print in {rng.randint(3, 12)} hours if one stops halfway?"
    )


_PROBLEMS = (
    *(_shopping, _discount, _travel, _meeting_trains, _work_together, _fractions, _ages, _garden, _tank, _triangle),
    *(_schedule, _wages, _mixture, _population, _ratio, _interest, _average, _digits, _recipe, _packing, _savings),
    *(_tickets, _probability, _printing),
)

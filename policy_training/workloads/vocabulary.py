"""Names, places, goods and dates that the kinds of prompts fill their templates with."""

from random import Random


def listed(text: str, separator: str | None = None) -> tuple[str, ...]:
    """Split a list that is written as one text, at white space unless told otherwise."""
    return tuple(text.split(separator))


FIRST_NAMES = listed(
    "Aisha Alan Amara Ana Anton Beatriz Ben Bianca Carlos Chen Chloe Clara Daniel Dana David Dimitri Elena Elif "
    "Emil Erik Fatima Felix Freya George Grace Hana Hassan Helen Hugo Ibrahim Ines Ivan Jack Jamal Jana Jin Jonas "
    "Julia Kai Kofi Laila Lars Leila Liam Lina Lucas Maria Marek Maya Mei Milan Mina Nadia Nina Noah Olga Omar "
    "Oscar Paula Pedro Petra Priya Rafael Ravi Rosa Samir Sara Sofia Stefan Tara Theo Thomas Uma Vera Victor Wei "
    "Yara Yusuf Zoe"
)
LAST_NAMES = listed(
    "Abbas Adeyemi Almeida Andersen Baker Bauer Bianchi Brandt Carter Castillo Chan Costa Das Dubois Eriksen "
    "Fischer Fontaine Garcia Gupta Haddad Hansen Horvat Ivanov Jansen Johnson Kaya Keller Khan Kim Kowalski Kumar "
    "Larsen Lee Lopez Martin Mbeki Meyer Moreau Murphy Nakamura Nguyen Novak Okafor Okoye Olsen Park Petrov Popescu "
    "Quinn Rossi Santos Sato Schmidt Silva Singh Tanaka Torres Vargas Virtanen Walker Weber Wilson Wong Yilmaz Zhang"
)
CITIES = listed(
    "Accra Amsterdam Athens Bergen Berlin Bogota Boston Brisbane Bristol Cairo Chicago Copenhagen Dakar Delhi "
    "Denver Dublin Geneva Hamburg Hanoi Helsinki Istanbul Jakarta Kyoto Lagos Leeds Lima Lisbon London Lyon Madrid "
    "Manila Melbourne Milan Montreal Mumbai Munich Nairobi Naples Osaka Oslo Ottawa Paris Porto Prague Quito Riga "
    "Rome Santiago Seattle Seoul Seville Shanghai Singapore Stockholm Sydney Toronto Turin Utrecht Vienna Warsaw "
    "Zurich"
)
COMPANIES = listed(
    "Acorn Foods;Alder Logistics;Amber Labs;Bluefin Marine;Brightwater Energy;Cedar & Sons;Cobalt Systems;"
    "Copperfield Books;Delta Optics;Evergreen Paper;Falcon Freight;Granite Works;Harbour Tools;Juniper Textiles;"
    "Kestrel Air;Lantern Media;Linden Pharma;Maple Robotics;Meridian Bank;Northwind Traders;Oakridge Dairy;"
    "Orchard Software;Pinnacle Sports;Quarry Stone;Redwood Furniture;Silverline Rail;Solstice Travel;"
    "Summit Insurance;Tidal Foods;Willow Health",
    ";",
)
JOBS = listed(
    "baker;bookkeeper;biologist;carpenter;chef;civil engineer;data analyst;dentist;designer;"
    "farmer;geologist;journalist;lawyer;librarian;mechanic;nurse;tailor;painter;pharmacist;"
    "photographer;physicist;pilot;plumber;programmer;project manager;sales manager;surveyor;teacher;translator;"
    "veterinarian",
    ";",
)
GOODS = listed(
    "apples;backpacks;balloons;batteries;beads;books;bottles of juice;boxes of tea;bracelets;brushes;buckets;"
    "buttons;cakes;candles;caps;chairs;cookies;cups;envelopes;erasers;flowers;folders;forks;glasses;hammers;"
    "jars of honey;kites;lamps;lemons;magazines;marbles;markers;mugs;notebooks;oranges;pencils;pens;pillows;plates;"
    "postcards;posters;rulers;scarves;seed packets;shirts;socks;stamps;stickers;tickets;towels;toy cars;umbrellas",
    ";",
)
MONTHS = listed("January February March April May June July August September October November December")
WEEKDAYS = listed("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")


def person(rng: Random) -> str:
    """A first and a last name."""
    return f"{rng.choice(FIRST_NAMES)} {rng.choice(LAST_NAMES)}"


def date(rng: Random) -> str:
    """A day such as "7 March 2021"."""
    return f"{rng.randint(1, 28)} {rng.choice(MONTHS)} {rng.randint(1995, 2030)}"


def iso_date(rng: Random) -> str:
    """A day such as "2021-03-07"."""
    return f"{rng.randint(1995, 2030)}-{rng.randint(1, 12):02}-{rng.randint(1, 28):02}"


def clock(rng: Random) -> str:
    """A time of day such as "14:35"."""
    return f"{rng.randint(6, 21):02}:{rng.randrange(0, 60, 5):02}"


def email(name: str, rng: Random) -> str:
    """An address for a person, in a domain that nobody owns."""
    return f"{name.lower().replace(' ', '.')}{rng.randint(1, 99)}@example.{rng.choice(('com', 'org', 'net'))}"

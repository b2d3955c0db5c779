"""Open questions and writing requests: explanations, advice, lists, stories, poems, dialogues and e-mails."""

from random import Random

from policy_training.workloads.vocabulary import CITIES, COMPANIES, FIRST_NAMES, JOBS, WEEKDAYS, listed

_TOPICS = listed(
    "photosynthesis;black holes;the water cycle;plate tectonics;vaccines;the Roman Empire;the Silk Road;"
    "the printing press;the French Revolution;the history of chess;jazz music;classical ballet;"
    "impressionist painting;street art;opera;film photography;science fiction novels;folk tales;haiku poetry;"
    "ancient Greek theatre;renewable energy;electric cars;nuclear power;public transport;urban planning;tiny houses;"
    "recycling;composting;beekeeping;organic farming;coral reefs;rainforests;deserts;volcanoes;glaciers;whales;"
    "migratory birds;wolves;honey bees;octopuses;sourdough bread;coffee roasting;green tea;cheese making;"
    "vegetarian cooking;street food;home gardening;bonsai trees;houseplants;knitting;woodworking;pottery;origami;"
    "calligraphy;board games;crossword puzzles;juggling;marathon running;rock climbing;swimming;yoga;cycling tours;"
    "sailing;fencing;football tactics;the Olympic Games;meditation;sleep habits;healthy breakfasts;"
    "stretching at work;stress at school;time management;remote work;job interviews;public speaking;negotiation;"
    "teamwork;personal budgets;saving for retirement;inflation;the stock market;small businesses;online shopping;"
    "customer service;machine learning;computer viruses;passwords;cloud computing;open source software;video games;"
    "smartphones;social media;3D printing;robots in hospitals;space travel;the Moon landing;satellites;telescopes;"
    "weather forecasts;time zones;calendars;maps;languages that die out;learning Spanish;sign language;"
    "museum visits;train journeys;camping;packing for a long trip;life on an island;moving to a new city;"
    "sharing a flat;raising a puppy;adopting a cat;school uniforms;homework;libraries;second-hand clothes;"
    "minimalism;volunteering;neighbourhood festivals;birthday parties;wedding speeches;thank-you notes",
    ";",
)
_AUDIENCES = (
    *("a ten-year-old", "a complete beginner", "a curious teenager", "my grandmother", "a new colleague"),
    *("a busy manager", "a university student", "a group of tourists", "a sceptical friend", "a school class"),
)
_FRAMES = (
    "Explain {topic} to {audience}.",
    "What are the most common misunderstandings about {topic}?",
    "List {n} surprising facts about {topic}.",
    "Give me {n} tips for someone who wants to know more about {topic}.",
    "Write a short story in which {name}, a {job} from {city}, discovers {topic}.",
    "Write a poem of {n} lines about {topic} and {other}.",
    "Write a dialogue between {name} and {audience} about {topic}.",
    "Compare {topic} with {other}. What do they have in common?",
    "Write an e-mail to {name} at {company} that proposes a workshop on {topic} in {city}.",
    "Write a polite e-mail to {name} that declines an invitation to a talk on {topic} on {day}.",
    "Plan a {minutes}-minute lesson on {topic} for {audience}.",
    "Draft a speech of {minutes} seconds about {topic} for {audience}.",
    "What are the arguments for and against {topic} in schools?",
    "Write {n} quiz questions about {topic}, with answers.",
    "Suggest {n} titles for a blog post that links {topic} and {other}.",
    "Why do some people in {city} care so much about {topic}?",
    "What will people think of {topic} in {minutes} years?",
    "I am a {job} and know nothing about {topic}. Where should I begin?",
    "Write a product review by {name} of a book about {topic}.",
    "Write an advertisement by {company} that has to do with {topic}.",
    "My friend {name} only talks about {topic}. What can I ask to keep the conversation going?",
    "Describe a perfect {day} in {city} for somebody who loves {topic}.",
    "Write a letter from a {job} in the year 1900 who hears about {topic} for the first time.",
    "Invent a game for {n} players that teaches {topic}.",
)
_STYLES = (
    *("", "", "", " Keep it under 100 words.", " Use simple words.", " Answer in one paragraph.", " Be funny."),
    *(" Give an example.", " Use a friendly tone.", " Use bullet points.", " End with a question.", " Be precise."),
)


def draw(rng: Random) -> str:
    """One question or request, some with a wish for the style."""
    topic, other = rng.sample(_TOPICS, 2)
    request = rng.choice(_FRAMES).format(
        topic=topic,
        other=other,
        audience=rng.choice(_AUDIENCES),
        name=rng.choice(FIRST_NAMES),
        job=rng.choice(JOBS),
        city=rng.choice(CITIES),
        company=rng.choice(COMPANIES),
        day=rng.choice(WEEKDAYS),
        n=rng.randint(3, 12),
        minutes=rng.randrange(10, 95, 5),
    )
    return request + rng.choice(_STYLES)

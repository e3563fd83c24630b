"""Notes that are found by what they say: a whole application over `iceburg.database`.

It knows nothing of SQLite and PostgreSQL: ICEBURG_USE_POSTGRES and ICEBURG_DUAL_WRITE choose, ICEBURG_DATA_DIR and
DATABASE_URL say where.
"""
# ruff: noqa: T201

from iceburg.database import Telemetry, UnifiedDatabase, VectorStore

NOTES = {
    "ice": "Icebergs float because ice is lighter than water",
    "tea": "Tea is best with water that has just boiled",
    "list": "Buy tea, lemons and a notebook",
}


def toy_embedding(texts: list[str]) -> list[list[float]]:
    """Count a few words: enough to show how an embedding function is passed in."""
    return [[float(text.lower().count(word)) for word in ("ice", "float", "tea", "boil", "buy")] for text in texts]


def main() -> None:
    """Save notes and a conversation about them, and print what is there."""
    with UnifiedDatabase() as database:
        notes = VectorStore(toy_embedding, "notes", database)
        notes.add(list(NOTES.values()), [{"words": len(text.split())} for text in NOTES.values()], list(NOTES))
        for question in ("Why do icebergs float?", "Must the kettle boil for tea?"):
            (found,) = notes.semantic_search(question, k=1)
            database.save_conversation("notes", question, found.document or "", metadata={"note": found.id})
            Telemetry(database).write("note_found", {"note": found.id, "distance": found.distance})
        for exchange in database.get_conversations("notes", limit=10):
            print(f"{exchange['user_message']} {exchange['assistant_message']}. {exchange['metadata']}")
        print([hit.id for hit in notes.semantic_search("tea", where={"words": {"$gt": 6}})])
        print([(counted.key, counted.count) for counted in database.telemetry.aggregate()])


if __name__ == "__main__":
    main()

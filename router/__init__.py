if __name__ != "draftpick.router":
    from draftpick.former_names import redirect

    redirect(__name__)

if __name__ != "draftpick.engines":
    from draftpick.former_names import redirect

    redirect(__name__)

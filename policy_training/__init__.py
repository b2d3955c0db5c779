if __name__ != "draftpick.policy_training":
    from draftpick.former_names import redirect

    redirect(__name__)

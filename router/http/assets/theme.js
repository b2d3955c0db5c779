// Applies the saved theme before the first paint; without one the system's applies.
{
  const chosen = localStorage.getItem("draftpick.theme");
  if (chosen) document.documentElement.dataset.theme = chosen;
}

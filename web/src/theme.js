// Runs before the page is drawn, so that it never flashes in the wrong colours. Not a module, because those run later.
(() => {
  try {
    const { theme } = JSON.parse(localStorage.getItem('mini-gemini')) ?? {};
    if (theme === 'light' || theme === 'dark') document.documentElement.dataset.theme = theme;
  } catch {
    // No storage, no preference: the system's theme.
  }
})();

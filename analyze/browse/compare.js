function compareView(app) { return {}; }

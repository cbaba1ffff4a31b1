function steerView(app) { return {}; }

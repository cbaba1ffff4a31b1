function textView(app) { return {}; }

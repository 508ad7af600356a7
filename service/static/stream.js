"use strict";
function startStream() {}

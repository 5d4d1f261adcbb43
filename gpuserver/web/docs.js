// Shows the API's documentation; a file of its own because inline scripts are not allowed here.
window.SwaggerUIBundle({ url: "openapi.json", dom_id: "#swagger-ui" });

package audit

import p "kthwd/appliance/program"

// nsaRules are the points of the guidance that concern a control plane. It numbers none, so the
// names are those of its sections.
var nsaRules = []rule{
	{id: "pods/1", title: "Pod Security is enforced by default", test: podSecurity("baseline", "restricted"), why: "without it a namespace is privileged until it has a label"},
	{id: "network/1", title: "etcd is reached by the API server only", test: orElse(localPorts, controllersOnly, "its port is open to the other controllers, and admits no other certificate")},
	{id: "network/2", title: "etcd has a CA of its own", manual: true, test: orElse(ownCA, controllersOnly, "etcd admits the certificates of controllers only, whatever the CA has signed")},
	{id: "network/3", title: "Control plane's ports are not open to all", test: both(is(p.ControllerManager, "bind-address", "127.0.0.1"), is(p.Scheduler, "bind-address", "127.0.0.1")), fix: "set profile: cis"},
	{id: "network/4", title: "API server is not reachable from the Internet", manual: true, why: "a firewall's work: admit the load balancers and the machines of the cluster to 6443, 2379, 2380 and 10301"},
	{id: "network/5", title: "Traffic is TLS 1.2 or later with strong suites", test: both(only(p.APIServer, "tls-cipher-suites", strongSuites), only(p.Etcd, "cipher-suites", strongSuites)), why: "Go speaks nothing older by default"},
	{id: "network/6", title: "Secrets are encrypted at rest", test: strongProvider},
	{id: "network/7", title: "Kubeconfigs are private", test: mode(dataFiles("*.kubeconfig"), 0o600)},
	{id: "auth/1", title: "No anonymous requests", test: orElse(is(p.APIServer, "anonymous-auth", "false"), anonymousLimited, "only the paths of probes answer without credentials")},
	{id: "auth/2", title: "Strong user authentication", manual: true, why: "give people tokens of an identity provider: jwt in authentication-config.yaml"},
	{id: "auth/3", title: "No static tokens", test: unset(p.APIServer, "token-auth-file")},
	{id: "auth/4", title: "RBAC decides", test: has(p.APIServer, "authorization-mode", "RBAC")},
	{id: "audit/1", title: "Audit log is on", test: both(set(p.APIServer, "audit-log-path"), set(p.APIServer, "audit-policy-file"))},
	{id: "audit/2", title: "Audit log leaves the machine", manual: true, test: orManual(set(p.APIServer, "audit-webhook-config-file")), why: "ship the file of --audit-log-path with an agent, or name --kube-apiserver-arg=audit-webhook-config-file=FILE"},
	{id: "upgrade/1", title: "Versions are current", manual: true, why: "kthwd version prints them; upstream's security announcements tell which to take"},
}

package environment

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// Nothing within the cluster goes through a proxy of the environment, whatever the process: the
// controller, where Take has completed NO_PROXY, a load balancer, or a verb on another machine.
//
// TestClients finds each place that makes a client of HTTP, of Kubernetes or of etcd, or reads a
// kubeconfig for one. Such a place is without a proxy by its text, or has a row here.
var clientsWithProxy = map[string]string{
	"appliance/commands/files.go clientcmd.BuildConfigFromFlags":   "reads the file, connects to nothing",
	"appliance/controllers/live.go clientcmd.BuildConfigFromFlags": "in the controller: NO_PROXY has the kubeconfig's server, and its transport is shared with upstream's clients",
	"appliance/etcdgateway/gateway.go grpc.NewClient":              "a unix socket",
	"lb/discovery/kubeconfig.go clientcmd.NewDefaultClientConfig":  "client.go of the package makes the transport, without a proxy",
}

// makesClient are the expressions that make a client with a proxy of the environment, unless they say otherwise.
var makesClient = []string{
	"http.DefaultTransport", "http.DefaultClient", "http.ProxyFromEnvironment", "http.Get", "http.Post", "http.PostForm", "http.Head",
	"rest.InClusterConfig", // literals of http.Client and rest.Config are looked at by their fields; an http.Transport has no proxy by itself
	"clientcmd.BuildConfigFromFlags", "clientcmd.BuildConfigFromKubeconfigGetter", "clientcmd.NewDefaultClientConfig",
	"clientcmd.NewNonInteractiveClientConfig", "clientcmd.NewNonInteractiveDeferredLoadingClientConfig", "clientcmd.RESTConfigFromKubeConfig",
	"clientv3.New", "clientv3.NewFromURL", "clientv3.NewFromURLs", "grpc.NewClient", "grpc.Dial", "grpc.DialContext",
}

func TestClients(t *testing.T) {
	seen := map[string]bool{}
	for _, place := range clientsOf(t, "../..") {
		seen[place] = true
		if clientsWithProxy[place] == "" {
			t.Errorf("%s: it may go through a proxy of the environment. Make it without one (Proxy: http.ProxyURL(nil), grpc.WithNoProxy()), or give the reason in clientsWithProxy", place)
		}
	}
	for place := range clientsWithProxy {
		if !seen[place] {
			t.Errorf("%s: no longer there, or without a proxy now", place)
		}
	}
}

// The search itself: each form of a client with a proxy is found, and each without is not.
func TestClientsAreFound(t *testing.T) {
	for text, want := range map[string]bool{
		"http.Get(url)": true, "http.DefaultClient.Do(r)": true, "x := http.Transport{Proxy: http.ProxyFromEnvironment}; _ = x": true,
		"x := &http.Client{Timeout: 1}; _ = x": true, "x := &http.Client{Transport: t}; _ = x": false, "x := &http.Transport{}; _ = x": false,
		"x := &rest.Config{Host: h}; _ = x": true, "x := &rest.Config{Proxy: http.ProxyURL(nil)}; _ = x": false, "var x *rest.Config; _ = x": false,
		"c, _ := clientcmd.BuildConfigFromFlags(a, b); use(c)": true, "c, _ := clientcmd.BuildConfigFromFlags(a, b); c.Proxy = http.ProxyURL(nil)": false,
		"clientv3.New(clientv3.Config{})": true, "clientv3.New(clientv3.Config{DialOptions: []grpc.DialOption{grpc.WithNoProxy()}})": false,
		"clientv3.New(clientv3.Config{DialOptions: []grpc.DialOption{grpc.WithContextDialer(d)}})": false,
	} {
		file, err := parser.ParseFile(token.NewFileSet(), "x.go", "package x\nfunc f() { "+text+" }", 0)
		if err != nil {
			t.Fatal(err)
		}
		if got := len(clientsIn(file)) > 0; got != want {
			t.Errorf("%s: got %v, want %v", text, got, want)
		}
	}
}

// clientsOf returns the places in the product's code, "file expression" each, once.
func clientsOf(t *testing.T, root string) (places []string) {
	t.Helper()
	for _, dir := range []string{"appliance", "cmd", "health", "lb", "rbacseed"} {
		err := filepath.WalkDir(filepath.Join(root, dir), func(path string, _ fs.DirEntry, err error) error {
			if err != nil || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			file, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
			if err != nil {
				return err
			}
			name, err := filepath.Rel(root, path)
			for _, expression := range clientsIn(file) {
				places = append(places, name+" "+expression)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	slices.Sort(places)
	return slices.Compact(places)
}

// clientsIn returns the expressions of a file that make a client which may use a proxy.
func clientsIn(file *ast.File) (all []string) {
	for _, declaration := range file.Decls {
		direct := setsNoProxy(declaration)
		ast.Inspect(declaration, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.CompositeLit:
				name, keys := nameOf(n.Type), keysOf(n)
				if name == "http.Client" && !slices.Contains(keys, "Transport") || name == "rest.Config" && !slices.Contains(keys, "Proxy") && !direct {
					all = append(all, name)
				}
			case *ast.SelectorExpr:
				name := nameOf(n)
				if slices.Contains(makesClient, name) && (!direct || strings.HasPrefix(name, "http.")) {
					all = append(all, name)
				}
			}
			return true
		})
	}
	return all
}

// setsNoProxy reports whether a function says that its client has no proxy.
func setsNoProxy(n ast.Node) (direct bool) {
	ast.Inspect(n, func(n ast.Node) bool {
		if call, ok := n.(*ast.CallExpr); ok {
			name := nameOf(call.Fun)
			direct = direct || name == "grpc.WithNoProxy" || name == "grpc.WithContextDialer" || name == "http.ProxyURL" && len(call.Args) == 1 && nameOf(call.Args[0]) == "nil"
		}
		return !direct
	})
	return direct
}

func keysOf(literal *ast.CompositeLit) (keys []string) {
	for _, element := range literal.Elts {
		if pair, ok := element.(*ast.KeyValueExpr); ok {
			keys = append(keys, nameOf(pair.Key))
		}
	}
	return keys
}

// nameOf returns package.name of a selector, and the name of an identifier.
func nameOf(n ast.Node) string {
	switch n := n.(type) {
	case *ast.SelectorExpr:
		if x, ok := n.X.(*ast.Ident); ok {
			return x.Name + "." + n.Sel.Name
		}
	case *ast.Ident:
		return n.Name
	}
	return ""
}

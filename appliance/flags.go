package appliance

import "kthwd/appliance/flagvalue"

// flagReader returns the function for agree.Controllers.Read.
func flagReader() func(program, key string, values ...string) (is, otherwise string, ok bool) {
	var reader flagvalue.Reader
	return func(program, key string, values ...string) (is, otherwise string, ok bool) {
		r, ok := reader.Read(program, key, values...)
		return r.Value, r.Default, ok
	}
}

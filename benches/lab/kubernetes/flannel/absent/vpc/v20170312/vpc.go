// Package v20170312 stands in for a cloud's, as far as flannel names it: every request is refused.
package v20170312

import "errors"

var errAbsent = errors.New("this flannel is built without a cloud")

type (
	// Filter, and all that follow, have the fields that flannel sets and reads.
	Filter struct {
		Name   *string
		Values []*string
	}
	// Route is one of a table.
	Route struct {
		RouteId              *uint64
		DestinationCidrBlock *string
		GatewayType          *string
		GatewayId            *string
		RouteType            *string
		Enabled              *bool
	}
	// RouteTable has some.
	RouteTable struct {
		RouteTableId *string
		RouteSet     []*Route
	}
	// DescribeRouteTablesRequest asks for tables.
	DescribeRouteTablesRequest struct{ Filters []*Filter }
	// DescribeRouteTablesResponse would have them.
	DescribeRouteTablesResponse struct {
		Response *struct{ RouteTableSet []*RouteTable }
	}
	// CreateRoutesRequest would add routes.
	CreateRoutesRequest struct {
		RouteTableId *string
		Routes       []*Route
	}
	// DeleteRoutesRequest would remove some.
	DeleteRoutesRequest struct {
		RouteTableId *string
		Routes       []*Route
	}
	// Client is nobody's.
	Client struct{}
)

// NewClientWithSecretId makes one that refuses everything.
func NewClientWithSecretId(_, _, _ string) (*Client, error) { return &Client{}, nil }

// NewDescribeRouteTablesRequest makes one.
func NewDescribeRouteTablesRequest() *DescribeRouteTablesRequest { return &DescribeRouteTablesRequest{} }

// NewCreateRoutesRequest makes one.
func NewCreateRoutesRequest() *CreateRoutesRequest { return &CreateRoutesRequest{} }

// NewDeleteRoutesRequest makes one.
func NewDeleteRoutesRequest() *DeleteRoutesRequest { return &DeleteRoutesRequest{} }

// DescribeRouteTables refuses.
func (*Client) DescribeRouteTables(*DescribeRouteTablesRequest) (*DescribeRouteTablesResponse, error) {
	return nil, errAbsent
}

// CreateRoutes refuses.
func (*Client) CreateRoutes(*CreateRoutesRequest) (struct{}, error) { return struct{}{}, errAbsent }

// DeleteRoutes refuses.
func (*Client) DeleteRoutes(*DeleteRoutesRequest) (struct{}, error) { return struct{}{}, errAbsent }
